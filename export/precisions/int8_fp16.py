"""int8, and the rest of the network in half precision, as engines want it."""

from dataclasses import replace

from edge_sampler.export.precisions import int8

PRECISION = replace(int8.PRECISION, name="int8+fp16", rest="fp16", results=False)
