"""The figures of a search's report, one module each; report/search.py lists them."""
