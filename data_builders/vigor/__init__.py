"""VIGOR: panoramas and overlapping satellite tiles of four cities.

vigor_dataset_builder.py  pictures to records, protocols to row numbers
download.py               what is there, missing or misplaced
labels.py                 the official lists and label files
"""
