"""Words of the simulated shop: departments, categories, projects, brands and styles.

Nothing in this file is random; data/shop/catalog.py generates items from it.
"""

from __future__ import annotations

from typing import NamedTuple


class Category(NamedTuple):
    """A category of items in the shop, with the nouns of their titles."""

    department: str
    name: str
    nouns: tuple[str, ...]
    price: float  # typical price
    consumable: bool  # items are used up and bought again


# department -> materials, and category -> nouns, typical price; a star marks consumables.
_SHELVES: dict[str, tuple[str, dict[str, tuple[str, float]]]] = {
    "Camping & Hiking": (
        "Canvas Ripstop Titanium Nylon Aluminium",
        {
            "Tents": ("Tent, Shelter, Dome Tent", 140),
            "Sleeping Bags": ("Sleeping Bag, Quilt, Down Bag", 90),
            "Camp Stoves": ("Stove, Gas Cooker, Burner", 55),
            "Headlamps": ("Headlamp, Lantern, Torch", 30),
            "Backpacks": ("Backpack, Rucksack, Daypack", 80),
            "Trail Food*": ("Trail Mix, Energy Bar, Dried Meal", 8),
        },
    ),
    "Kitchen": (
        "Steel Copper Ceramic Oak Enamel",
        {
            "Cookware": ("Saucepan, Frying Pan, Casserole", 60),
            "Knives": ("Chef Knife, Paring Knife, Bread Knife", 45),
            "Bakeware": ("Cake Tin, Baking Tray, Loaf Tin", 22),
            "Cutting Boards": ("Cutting Board, Chopping Board, Serving Board", 28),
            "Spices*": ("Spice Blend, Sea Salt, Pepper Mix", 6),
            "Storage Jars": ("Storage Jar, Canister, Spice Rack", 16),
        },
    ),
    "Coffee & Tea": (
        "Glass Steel Stoneware Cork Brass",
        {
            "Coffee Beans*": ("Espresso Beans, Filter Coffee, Coffee Roast", 14),
            "Coffee Grinders": ("Coffee Grinder, Burr Grinder, Hand Grinder", 70),
            "Coffee Makers": ("Coffee Maker, French Press, Espresso Pot", 60),
            "Mugs": ("Mug, Cup, Espresso Cup", 12),
            "Tea*": ("Green Tea, Black Tea, Herbal Tea", 9),
            "Kettles": ("Kettle, Teapot, Gooseneck Kettle", 45),
        },
    ),
    "Garden": (
        "Terracotta Cedar Zinc Bamboo Wicker",
        {
            "Garden Tools": ("Trowel, Secateurs, Garden Fork", 24),
            "Planters": ("Planter, Flower Pot, Window Box", 30),
            "Seeds*": ("Flower Seeds, Herb Seeds, Vegetable Seeds", 4),
            "Watering": ("Watering Can, Hose, Sprinkler", 32),
            "Garden Lights": ("Solar Light, Garden Lantern, String Lights", 26),
            "Garden Furniture": ("Garden Bench, Patio Chair, Bistro Table", 120),
        },
    ),
    "Home Office": (
        "Walnut Leather Steel Birch Felt",
        {
            "Desks": ("Desk, Standing Desk, Writing Table", 190),
            "Office Chairs": ("Office Chair, Desk Chair, Stool", 150),
            "Desk Lamps": ("Desk Lamp, Reading Lamp, Clip Lamp", 40),
            "Notebooks*": ("Notebook, Planner, Sketchbook", 9),
            "Keyboards": ("Keyboard, Trackpad, Wireless Mouse", 65),
            "Desk Organizers": ("Desk Organizer, Pen Holder, Letter Tray", 20),
        },
    ),
    "Baby": (
        "Muslin Cotton Beech Silicone Fleece",
        {
            "Strollers": ("Stroller, Buggy, Pram", 220),
            "Nappies*": ("Nappies, Pull-Up Pants, Wipes", 18),
            "Baby Bottles": ("Baby Bottle, Sippy Cup, Bottle Set", 14),
            "Cots": ("Cot, Crib, Bassinet", 160),
            "Baby Toys": ("Rattle, Stacking Toy, Activity Gym", 19),
            "Baby Carriers": ("Baby Carrier, Sling, Wrap", 75),
        },
    ),
    "Pets": (
        "Rope Rubber Plush Leather Wicker",
        {
            "Dog Food*": ("Dog Food, Puppy Kibble, Dog Treats", 22),
            "Cat Litter*": ("Cat Litter, Cat Food, Cat Treats", 15),
            "Dog Leads": ("Dog Lead, Collar, Harness", 20),
            "Pet Beds": ("Pet Bed, Dog Cushion, Cat Basket", 42),
            "Feeding Bowls": ("Feeding Bowl, Water Fountain, Slow Feeder", 17),
            "Pet Toys": ("Chew Toy, Fetch Ball, Scratching Post", 11),
        },
    ),
    "Fitness": (
        "Cork Foam Neoprene Cast-Iron Mesh",
        {
            "Yoga Mats": ("Yoga Mat, Exercise Mat, Yoga Block", 35),
            "Dumbbells": ("Dumbbell, Kettlebell, Weight Set", 48),
            "Protein*": ("Protein Powder, Recovery Shake, Protein Bar", 26),
            "Running Shoes": ("Running Shoe, Trainer, Trail Shoe", 95),
            "Water Bottles": ("Water Bottle, Flask, Shaker", 18),
            "Resistance Bands": ("Resistance Band, Skipping Rope, Foam Roller", 21),
        },
    ),
    "Cycling": (
        "Carbon Reflective Leather Alloy Waxed",
        {
            "Helmets": ("Helmet, City Helmet, Road Helmet", 70),
            "Bike Lights": ("Bike Light, Rear Light, Front Light", 27),
            "Panniers": ("Pannier, Saddle Bag, Handlebar Bag", 58),
            "Cycling Gloves": ("Cycling Glove, Arm Warmer, Overshoe", 29),
            "Chain Lube*": ("Chain Lube, Bike Cleaner, Tyre Sealant", 10),
            "Repair Kits": ("Repair Kit, Multi-Tool, Mini Pump", 25),
        },
    ),
    "Living Room": (
        "Linen Velvet Wool Jute Rattan",
        {
            "Cushions": ("Cushion, Pillow, Floor Cushion", 25),
            "Throws": ("Throw, Blanket, Plaid", 45),
            "Candles*": ("Candle, Tealight Set, Reed Diffuser", 12),
            "Rugs": ("Rug, Runner, Doormat", 110),
            "Vases": ("Vase, Bowl, Candle Holder", 30),
            "Wall Art": ("Print, Poster, Wall Clock", 38),
        },
    ),
}

DEPARTMENTS: tuple[str, ...] = tuple(_SHELVES)
MATERIALS: dict[str, tuple[str, ...]] = {name: tuple(words.split()) for name, (words, _) in _SHELVES.items()}
CATEGORIES: tuple[Category, ...] = tuple(
    Category(department, name.rstrip("*"), tuple(nouns.split(", ")), price, name.endswith("*"))
    for department, (_, shelves) in _SHELVES.items()
    for name, (nouns, price) in shelves.items()
)

# Projects of customers: a project is a path through related categories. Most categories are on several paths that
# continue differently, so the last item alone does not determine the next category.
PROJECTS: tuple[tuple[str, ...], ...] = (
    ("Tents", "Sleeping Bags", "Camp Stoves", "Headlamps", "Trail Food"),
    ("Backpacks", "Sleeping Bags", "Headlamps", "Water Bottles", "Trail Food"),
    ("Running Shoes", "Backpacks", "Trail Food", "Headlamps", "Camp Stoves"),
    ("Panniers", "Tents", "Camp Stoves", "Repair Kits", "Bike Lights"),
    ("Helmets", "Bike Lights", "Panniers", "Cycling Gloves", "Chain Lube"),
    ("Repair Kits", "Chain Lube", "Cycling Gloves", "Helmets", "Water Bottles"),
    ("Cookware", "Knives", "Cutting Boards", "Spices", "Storage Jars"),
    ("Bakeware", "Storage Jars", "Cutting Boards", "Cookware", "Mugs"),
    ("Knives", "Spices", "Cookware", "Bakeware", "Tea"),
    ("Coffee Grinders", "Coffee Beans", "Coffee Makers", "Mugs", "Kettles"),
    ("Coffee Makers", "Coffee Beans", "Storage Jars", "Coffee Grinders", "Notebooks"),
    ("Kettles", "Tea", "Mugs", "Candles", "Throws"),
    ("Garden Tools", "Seeds", "Planters", "Watering", "Garden Lights"),
    ("Garden Furniture", "Garden Lights", "Planters", "Cushions", "Candles"),
    ("Planters", "Seeds", "Watering", "Garden Tools", "Vases"),
    ("Desks", "Office Chairs", "Desk Lamps", "Keyboards", "Desk Organizers"),
    ("Keyboards", "Desk Lamps", "Notebooks", "Desk Organizers", "Mugs"),
    ("Office Chairs", "Desks", "Desk Organizers", "Wall Art", "Notebooks"),
    ("Strollers", "Baby Carriers", "Nappies", "Baby Bottles", "Baby Toys"),
    ("Cots", "Nappies", "Baby Toys", "Baby Carriers", "Rugs"),
    ("Baby Bottles", "Nappies", "Cots", "Strollers", "Throws"),
    ("Pet Beds", "Feeding Bowls", "Dog Food", "Dog Leads", "Pet Toys"),
    ("Cat Litter", "Feeding Bowls", "Pet Toys", "Pet Beds", "Throws"),
    ("Dog Leads", "Dog Food", "Pet Toys", "Feeding Bowls", "Backpacks"),
    ("Yoga Mats", "Resistance Bands", "Water Bottles", "Candles", "Tea"),
    ("Dumbbells", "Resistance Bands", "Protein", "Water Bottles", "Running Shoes"),
    ("Running Shoes", "Protein", "Dumbbells", "Yoga Mats", "Water Bottles"),
    ("Rugs", "Cushions", "Throws", "Vases", "Wall Art"),
    ("Wall Art", "Vases", "Candles", "Cushions", "Rugs"),
    ("Throws", "Cushions", "Wall Art", "Desk Lamps", "Candles"),
)

# style -> words for it in titles, and its colours
STYLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "rustic": (("Rustic", "Farmhouse"), ("Rust", "Chestnut", "Cream")),
    "modern": (("Modern", "Urban"), ("Black", "Slate", "Silver")),
    "classic": (("Classic", "Heritage"), ("Navy", "Burgundy", "Ivory")),
    "playful": (("Playful", "Rainbow"), ("Yellow", "Coral", "Turquoise")),
    "minimal": (("Minimalist", "Nordic"), ("White", "Sand", "Grey")),
    "botanical": (("Botanical", "Floral"), ("Sage", "Moss", "Rose")),
}

_BRANDS = """
Aldervik Ambleford Ashgrove Barnwick Birkholm Bramblay Brindlewood Calderhay Cindermoor Copperlane
Corvane Dapplewood Dunmarrow Eastvale Elmstead Emberlyn Fennick Ferndale Fjordane Foxhollow
Gladestone Glimmerby Greycliff Halvoren Harrowmead Hazelby Ivorne Juniperhay Kestrelby Kindlewick
Larkmoor Lindqvale Lochbarrow Maplecroft Marlowen Mistelby Mossgate Nettlebank Northmere Oakhurst
Orlanwood Pebbleton Pinecrest Quillan Ravenholt Redfernly Rowanby Saltmarsh Silverbeck Skyforde
Sorrelton Stonebridge Tamarisk Thistledown Umberly Valegrove Wendelby Westerhay Willowmere Yarrowdale
"""
BRANDS: tuple[str, ...] = tuple(_BRANDS.split())

SIZES: tuple[str, ...] = ("", "", "", "", "Small", "Large", "Set")
PRICE_BANDS: tuple[str, ...] = ("budget", "value", "mid-range", "premium", "luxury")

# country -> share of customers
COUNTRIES: dict[str, float] = {
    "United Kingdom": 0.34,
    "Germany": 0.18,
    "France": 0.14,
    "Netherlands": 0.10,
    "Sweden": 0.08,
    "Spain": 0.07,
    "Ireland": 0.05,
    "Japan": 0.04,
}
