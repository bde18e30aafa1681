"""The methods: one file per published system, found by the registry without a list."""
