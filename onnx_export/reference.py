"""Texts whose torch vectors the tests compare with, written for this purpose."""

TEXTS = (
    "",
    "merge",
    "Hello, world!",
    "A cat sleeps on the warm windowsill.",
    "Someone's pet is napping in the sun by the window.",
    "The invoice is due on 31 March 2026; late payment costs 2.5% a month.",
    "How do I reset my password?",
    "To choose a new password, open the settings and follow the link that is sent to you.",
    "UPPER CASE AND lower case make no difference to this model.",
    "naïve café façade – accents are stripped, too",
    "def merge(vectors):\n    return vectors.mean(axis=0)\n",
    "Tabs\tand  several   spaces\r\nand line breaks\n\nare white space.",
    "東京は日本の首都です。",
    "Der Zug nach München fährt um 9:45 Uhr von Gleis 12.",
    "🙂 emoji are unknown to the vocabulary 🚀",
    "[SEP] and [MASK] inside a text become the special tokens themselves.",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "?!... --- ,,, ;;; ((( )))",
    "The reservoir above the village was drained in autumn so that the dam could be inspected. "
    "Engineers found two hairline cracks near the eastern abutment, sealed them with resin, and "
    "recommended a second inspection before the spring thaw. Until then the water level is to stay "
    "three metres below its usual mark, and the hydroelectric station will run at half power.",
    " ".join(
        f"Step {number}: turn the valve by {number * 7 % 90} degrees and wait." for number in range(1, 81)
    ),
)
"""The last one has more than 512 tokens."""
