"""Training a merger, with the extra ``train``: the network, its data, its losses, the stages, the export.

Nothing here is imported at run time; this is the only part of the package that needs torch.
"""

from merger_plugins._extras import require

for _module in ("torch", "transformers"):
    require(_module, extra="train", purpose="Training a merger")
del _module
