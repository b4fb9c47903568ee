# SPDX-License-Identifier: MIT
"""SpAtten (Wang, Zhang, Han; HPCA 2021; arXiv 2012.09852) in float PyTorch, on Hugging Face models.

Read in this order:

==============  ==============================================================================
``settings``    what is switched on, and the counts that follow from it (no torch)
``quantise``    linear symmetric quantisation, MSB and LSB planes
``cascade``     the algorithm itself: one attention layer, and what survives to the next
``models``      the adapter of each model family, and loading of weights
``encoder``     BERT-class: one pass over a text
``decoder``     GPT-2- and Llama-class: prompt pass, then cached generation
``record``      everything the algorithm decided, as numpy (no torch): the workload of the chip
``replay``      the same computation from a record, without a cache: the check on all of the above
==============  ==============================================================================
"""
