"""The bundled demonstration data: emoji, and the models that judge images of them."""
