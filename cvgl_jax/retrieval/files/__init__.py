"""Feature files of any code base; nothing in them is executed.

Modules:
  array_files: .npy, .npz, .mat and .hdf5 as arrays.
  feature_files: the known files of the published code bases, and our own.
  listings: labels, paths and coordinates as CSV.
  inputs: features and listings, checked together.
  submission: answer files of the University-160k challenges.
"""
