"""CVUSA: street panoramas and satellite pictures of the United States.

cvusa_dataset_builder.py  pairs to records
download.py               what is there, missing or misplaced
lists.py                  the official split and location files
"""
