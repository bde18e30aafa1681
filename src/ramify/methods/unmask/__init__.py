"""Methods of the masked loop: a canvas with open positions, of which several are fixed after every pass."""
