"""SpAtten's attention core: fetch, scores, softmax, selection, weighted sums, cascade (SpAtten Fig. 8)."""
