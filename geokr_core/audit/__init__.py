"""The step `map_audit`: where image and land-cover map disagree, ranked, with errors planted in each run to show what is found.

``run`` is the step, ``cell_run`` its part of cells. ``disagreement`` predicts and scores, ``planting`` plants errors and measures, ``kinds`` says what a
disagreement may be, ``accuracy`` turns a judged sample into the accuracy of the map.
"""
