"""GradAlign beside verl: a data set that follows a selection, and rounds of choosing and training.

`dataset` and `probe` run in verl's environment, which may hold an older transformers and no TRL; the rest in ours.
"""
