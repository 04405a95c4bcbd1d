"""The bundled demonstration data: emoji, and the models that judge pictures of them."""
