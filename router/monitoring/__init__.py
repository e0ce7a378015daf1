"""What the router says about the whole system, and when it is alarming."""
