"""Algorithms that know nothing of Solowire: the hash ring, fair shares, rates, backoff, histograms."""
