"""x @ weight.T with the weight in its checkpoint's own 16 bits and the sums in fp32."""
