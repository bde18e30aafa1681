"""Draft–verify methods: they propose trees, the engine verifies them."""
