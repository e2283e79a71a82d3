"""Low-precision numbers: learned quantizers, the rewrite of a model, codecs, packing. Pure torch."""
