"""Sample documents, a long chat, and how each way of searching ranks the answers to questions."""
