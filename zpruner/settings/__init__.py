"""What a user sets: params.yaml, its files and its checks."""
