"""Edits on a real pretrained chat model, judged by the text it generates.

    python -m benchmarks.real.run --facts own --methods llp,icl --edits 36 --out own.json
    python -m benchmarks.real.gate --data DIR --method llp --counts 10,100,1000 --out gate.json
    python -m benchmarks.real.find DIR

``facts.py`` holds facts written for this benchmark, ``sets.py`` reads the public ones and says which rows are
for tables, ``judging.py`` says what is right and what is broken, ``measure.py`` asks.
"""
