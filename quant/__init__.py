"""Low-precision numbers: quantizers, the rewrite of a model, codecs, packing. Pure torch."""
