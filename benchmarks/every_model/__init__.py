"""Every causal language model that transformers can build, tiny and random, against what memplug promises.

    python -m benchmarks.every_model --methods llp,elder,grace,icl,ultraedit,finetune --out table.md

``tiny.py`` builds a model of any kind, ``promises.py`` tries one method on it, ``table.py`` writes the
table.
"""
