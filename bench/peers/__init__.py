"""Other vector stores under the load that flowkin is measured with; see bench/peers/__main__.py."""
