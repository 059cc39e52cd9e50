"""CVACT: street panoramas and satellite pictures of Canberra.

cvact_dataset_builder.py  pairs to records
download.py               what is there, missing or misplaced
lists.py                  ACT_data.mat, the official lists
"""
