"""University-1652 and data sets in its folder layout.

university1652_dataset_builder.py  folders to records
download.py                        what is there, missing or misplaced
release.py                         numbers of the official release
"""
