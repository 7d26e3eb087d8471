"""A version of a recommender over state that moves: requests in, lists out. No network, disk or clock."""
