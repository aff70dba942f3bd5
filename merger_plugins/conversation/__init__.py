"""A follow-up question merged with its conversation, and masses that fade with age.

"Is it treatable?" finds nothing by itself. Merged with the turns before it, it finds what the conversation
is about; a question that stands alone is better left as it is. A gate decides, for each question, how much of
the history it takes, from the vectors and token counts alone: no labels, no language model, no text.
"""

from merger_plugins.conversation.gate import BUNDLED_GATE, USUAL_MASS, HistoryGate, QuestionNeed, load_gate
from merger_plugins.conversation.masses import fading_masses
from merger_plugins.conversation.merging import REPEATED, ConversationQuery, merge_question, shown_passages

__all__ = [
    "BUNDLED_GATE",
    "REPEATED",
    "USUAL_MASS",
    "ConversationQuery",
    "HistoryGate",
    "QuestionNeed",
    "fading_masses",
    "load_gate",
    "merge_question",
    "shown_passages",
]
