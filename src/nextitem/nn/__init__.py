"""Parts that models are composed of, in folders by what they are."""
