"""Order as arithmetic: permutations, shuffle policies, remainders and the plan over them."""
