import os

# Shapes and types of public signatures are checked at run time by jaxtyping and beartype, under pytest only.
from jaxtyping import install_import_hook

install_import_hook("sfumato", "beartype.beartype")

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach for a network
