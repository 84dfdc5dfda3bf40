"""How work is run, whatever is computed: threads, transfers, memory, progress, what the machine has."""
