"""Raw recordings as laboratories keep them, made ready; and such recordings made up."""

#: What a session holds of two feet, and the forms in which recordings are written.
FEET = ("auto", "both", "left", "right")
FORMATS = ("csv", "parquet", "tfrecords")
#: Exponent of ten of each unit of time, in ns.
UNITS = {"s": 9, "ms": 6, "us": 3, "ns": 0}
