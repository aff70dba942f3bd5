"""How a model is released: weights in, a folder of `merger_plugins` out, compared with torch."""
