"""History: what a user would have been sent live, page by page, judged by present rights."""
