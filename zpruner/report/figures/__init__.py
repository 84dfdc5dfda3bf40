"""The figures of a report, one module each; contents.py lists them."""
