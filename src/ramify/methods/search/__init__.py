"""Methods of the pool loop: many paths behind one prompt, and one answer."""
