"""Any model to one graph whose parameters are `get_attr` nodes."""
