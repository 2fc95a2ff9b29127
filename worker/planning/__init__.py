"""Says which bmodels of a model fit a BM1684X box, and how fast they would be, before anything is compiled."""
