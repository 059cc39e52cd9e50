"""Data-set builders: folders of pictures to TFDS data sets in ArrayRecord.

base.py       the Builder that every data set derives from, records, build()
records.py    ArrayRecord shards, the columnar index, the report of a build
pictures.py   what a picture file must be to be read without wrong pixels
folders.py    looks into an unpacked download without decoding pictures
listed.py     records of pictures that a list names (CVUSA, CVACT, VIGOR)
prepare.py    builds one data set by name, keeps or replaces what is there
unfinished.py folders that a stopped build left behind
progress.py   one progress line for terminals and for log files
report.py     findings about a download, as text with an exit code
check.py      `python -m data_builders.check NAME --manual_dir=M`
plcd_index.py `python -m data_builders.plcd_index`: index files of PLCD
__main__.py   `python -m data_builders data_builders/NAME --data_dir=D`
<name>/       one data set each: <name>_dataset_builder.py and its test
"""
