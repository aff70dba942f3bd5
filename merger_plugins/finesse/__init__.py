"""The quality lab, with the extra ``bench``: what mergers are worth, measured. Never imported at run time."""
