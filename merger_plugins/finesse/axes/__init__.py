"""One module an axis: each takes rivals and a loaded task, and gives records.

``retrieval`` what is stored finds; ``fidelity`` to the base embedder's own vector; ``extrapolation`` to many
chunks; ``associativity`` over random trees; ``order`` of the chunks; ``follow_ups`` of conversations;
``robustness`` to chunking and to what does not belong; ``cost`` of merging.
"""
