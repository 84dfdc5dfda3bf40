"""Parts of compositions: what each of them is, and how it is found by its name."""
