# ruff: noqa: E501
"""Exports of shop systems, in small, as their templates and help pages write them: each is read whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import helpers as h
import pytest

from moonshelf.feeds.check import check_feed
from moonshelf.feeds.dialects.shops import SHOPS, recognise

I = "https://cdn.example/"  # noqa: E741 - pictures

WOO = f"""\
ID,Type,SKU,Name,Published,"Is featured?","Visibility in catalog","Short description",Description,"Tax status",\
"In stock?",Stock,"Sale price","Regular price",Categories,Tags,Images,Parent,Position,"Attribute 1 name",\
"Attribute 1 value(s)","Attribute 1 visible","Attribute 1 global"
10,variable,TEE,Tee,1,0,visible,Short,<p>Soft cotton</p>,taxable,1,,,,"Clothing, Clothing > Tees, Sale",summer,\
"{I}tee.jpg, {I}back.jpg",,0,Color,"Red, Blue",1,1
11,variation,TEE-R,Tee - Red,1,0,visible,,,taxable,1,3,15,20,,,{I}red.jpg,TEE,1,Color,Red,,1
12,variation,,Tee - Blue,1,0,visible,,,taxable,0,0,,20,,,,id:10,2,Color,Blue,,1
13,simple,MUG,"Mug, big",1,0,visible,,A mug,taxable,1,9,,5.50,"Home > Pots\\, Pans & Mugs",,{I}mug.jpg,,0,,,,
"""
MAGENTO = """\
sku,store_view_code,attribute_set_code,product_type,categories,product_websites,name,description,price,\
special_price,url_key,visibility,base_image,additional_images,additional_attributes,configurable_variations
TEE-R,,Top,simple,"Default Category/Men/Tops,Default Category/Men",base,Tee-Red,<p>Soft</p>,20.00,,tee-red,\
Not Visible Individually,/t/e/red.jpg,"/t/e/red.jpg,/t/e/red_2.jpg","color=Red,material=Cotton, organic",
TEE,,Top,configurable,"Default Category/Men/Tops",base,Tee,<p>Soft</p>,,,tee,"Catalog, Search",/t/e/tee.jpg,,,\
"sku=TEE-R,color=Red|sku=TEE-B,color=Blue"
"""
PRESTA = f"""\
Product ID;Active (0/1);Name *;Categories (x,y,z...);Price tax excluded;Tax rules ID;Reference #;Manufacturer;\
EAN13;Summary;Description;Image URLs (x,y,z...);Feature(Name:Value:Position)
7;1;Red mug;Home,Kitchen,Mugs;9,90;1;MUG-R;Acme;4006381333931;Short;<p>A mug</p>;{I}1.jpg,{I}2.jpg;Colour:Red:0
"""
BIG_NEW = f"""\
Item,ID,Name,Type,SKU,Options,Inventory Tracking,Current Stock,Price,Retail Price,Sale Price,Brand ID,Channels,\
Categories,Description,Image URL (Import),Variant Image URL,Is Visible
Product,55,Tee,physical,TEE,,variant,0,20.00,25.00,0,3,1,Shop/Tees;Sale,<p>Soft</p>,,,TRUE
Variant,91,,,TEE-R,Type=Swatch|Name=Color|Value=Red[#f00],,4,,,,,,,,,{I}red.jpg,
Variant,92,,,TEE-B,Type=Swatch|Name=Color|Value=Blue[#00f],,4,21.00,,,,,,,,{I}blue.jpg,
Image,7,,,,,,,,,,,,,,{I}tee.jpg,,
"""
SQUARESPACE = f"""\
Product ID [Non Editable],Variant ID [Non Editable],Product Type [Non Editable],Product Page,Product URL,Title,\
Description,SKU,Option Name 1,Option Value 1,Price,Sale Price,On Sale,Stock,Categories,Tags,Visible,\
Hosted Image URLs
p1,v1,PHYSICAL,shop,tee,Tee,<p>Soft</p>,T-R,Color,Red,20.00,15.00,Yes,3,"/clothing/tees, /sale",new,Yes,{I}1.jpg {I}2.jpg
,v2,,,,,,T-B,,Blue,20.00,0.00,No,3,,,,
p2,v3,PHYSICAL,shop,mug,Mug,,MUG,,,5.00,0.00,No,Unlimited,/home,,Yes,{I}mug.jpg
"""
WIX = """\
handleId,fieldType,name,description,productImageUrl,collection,sku,ribbon,price,surcharge,visible,discountMode,\
discountValue,inventory,weight,productOptionName1,productOptionType1,productOptionDescription1,brand
h1,Product,Tee,<p>Soft</p>,ab12_cd34~mv2.jpg;https://e.example/2.jpg,Tees;Sale,TEE,,20,,true,PERCENT,0,InStock,,\
Color,COLOR,#ff0000:Red;#0000ff:Blue,Acme
h1,Variant,,,,,T-R,,,0,,,,3,,,,#ff0000:Red,
h1,Variant,,,,,T-B,,,0,,,,3,,,,#0000ff:Blue,
h2,Product,Mug,,https://e.example/mug.jpg,,,,5,,true,PERCENT,0,InStock,,,,,
,Product,Mug,,https://e.example/mug.jpg,,M-3,,6,,true,PERCENT,0,InStock,,,,,
"""
ETSY = f"""\
TITLE,DESCRIPTION,PRICE,CURRENCY_CODE,QUANTITY,TAGS,MATERIALS,IMAGE1,IMAGE2,VARIATION 1 TYPE,VARIATION 1 NAME,\
VARIATION 1 VALUES,SKU
Tee,Soft,20.00,EUR,3,"tee,red",cotton,{I}1.jpg,{I}2.jpg,Custom Property,Colour,"Red,Blue",TEE
Mug,A mug,5.00,EUR,1,mug,clay,{I}mug.jpg,,,,,
"""
AMAZON = f"""\
TemplateType=fptcustom\tVersion=2021.0625\t\t\t\t\t\t\t\t
Product Type\tSeller SKU\tBrand Name\tProduct Name\tProduct ID\tProduct ID Type\tMain Image URL\tParentage\tParent SKU\tStandard Price
feed_product_type\titem_sku\tbrand_name\titem_name\texternal_product_id\texternal_product_id_type\tmain_image_url\tparent_child\tparent_sku\tstandard_price
shirt\tTEE\tAcme\tTee\t\t\t{I}tee.jpg\tparent\t\t
shirt\tTEE-R\tAcme\tTee red\t4006381333931\tEAN\t{I}red.jpg\tchild\tTEE\t20.00
"""
KEY = "[marketplace_id=ATVPDKIKX0DER]"
AMAZON_NEW = "".join("\t".join(cells) + "\n" for cells in (
    ["settings=feedType=256&labelRow=4&attributeRow=5&dataRow=7&x=y"], ["REQUIRED"], ["Listing Identity"],
    ["SKU", "Product Type", "Listing Action", "Parentage Level", "Parent SKU", "Item Name", "Product Id", "Main Image",
     "Other Image", "Color", "Your Price"],
    ["contribution_sku#1.value", "product_type#1.value", "::record_action", f"parentage_level{KEY}#1.value",
     f"child_parent_sku_relationship{KEY}#1.parent_sku", f"item_name{KEY}[language_tag=en_US]#1.value",
     "amzn1.volt.ca.product_id_value", f"main_product_image_locator{KEY}#1.media_location",
     f"other_product_image_locator_1{KEY}#1.media_location", f"color{KEY}[language_tag=en_US]#1.value",
     f"purchasable_offer{KEY}[audience=ALL]#1.our_price#1.schedule#1.value_with_tax"],
    ["ABC123", "SHIRT", "Create", "Child", "", "An example", "714532191586", "", "", "", "19.99"],
    ["TEE", "SHIRT", "Create", "Parent", "", "Tee", "", I + "tee.jpg", "", "", ""],
    ["TEE-R", "SHIRT", "Create", "Child", "TEE", "Tee red", "4006381333931", I + "red.jpg", I + "back.jpg", "Red", "20.00"],
))  # fmt: skip
AMAZON_REPORT = """\
item-name\titem-description\tlisting-id\tseller-sku\tprice\tquantity\topen-date\titem-is-marketplace\tproduct-id-type\
\tasin1\tproduct-id\tadd-delete\tfulfillment-channel\tstatus
Red mug\tA mug\t0101A\tMUG-R\t5.00\t3\t2026-01-01\ty\t1\tB0ABC12345\tB0ABC12345\t\tDEFAULT\tActive
"""
WOO_API = json.dumps([
    {"id": 10, "name": "Tee", "permalink": "https://w.example/tee", "type": "variable", "sku": "TEE", "price": "20",
     "regular_price": "25", "sale_price": "20", "stock_status": "instock", "description": "<p>Soft</p>",
     "average_rating": "0", "related_ids": [3], "upsell_ids": [], "menu_order": 0, "grouped_products": [],
     "default_attributes": [], "parent_id": 0, "global_unique_id": "4006381333931", "purchase_note": "",
     "categories": [{"id": 9, "name": "Clothing"}, {"id": 14, "name": "Tees"}], "brands": [{"id": 1, "name": "Acme"}],
     "images": [{"id": 1, "src": I + "1.jpg"}, {"id": 2, "src": I + "2.jpg"}],
     "attributes": [{"id": 6, "name": "Color", "options": ["Black", "Green"]}]},
])  # fmt: skip
MAGENTO_API = json.dumps({"items": [
    {"id": 1, "sku": "MB01", "name": "Bag", "attribute_set_id": 15, "price": 34, "status": 1, "type_id": "simple",
     "extension_attributes": {"website_ids": [1]}, "product_links": [], "tier_prices": [],
     "media_gallery_entries": [{"id": 1, "media_type": "image", "file": "/m/b/mb01.jpg"}],
     "custom_attributes": [{"attribute_code": "description", "value": "<p>Sporty</p>"},
                           {"attribute_code": "material", "value": "Nylon"}]},
], "total_count": 1})  # fmt: skip
EBAY = f"""\
Info,Version=1.0.0,Template=fx_category_template_EBAY_DE,,,,,,,,,
*Action(SiteID=Germany),Custom label (SKU),Category ID,Category name,Title,Relationship,Relationship details,\
P:EAN,Start price,Item photo URL,Condition ID,C:Brand,C:Material
Add,TEE,15687,/Clothing/Tees,Tee,,Color=Red;Blue,,,{I}1.jpg|{I}2.jpg,1000,Acme,Cotton
,TEE-R,,,,Variation,Color=Red,4006381333931,20.00,Red={I}red.jpg,,,
,TEE-B,,,,Variation,Color=Blue,,21.00,,,,
Add,MUG,20696,/Home/Mugs,Mug,,,,5.00,{I}mug.jpg,1000,,
"""
EBAY_OLD = f"""\
*Action(SiteID=US|Country=US|Currency=USD|Version=1193),*Category,*Title,*Description,*StartPrice,PicURL,CustomLabel
Add,15687,Mug,<p>A mug</p>,5.00,{I}mug.jpg,M-1
Add,15687,Mug,<p>Another</p>,6.00,{I}mug2.jpg,M-2
"""
EBAY_REPORT = """\
Item number,Title,Variation details,Custom label (SKU),Available quantity,Format,Currency,Start price,\
Current price,eBay category 1 name,eBay category 1 number,Condition,Listing site
1100,Mug,,MUG,3,FIXED_PRICE,USD,5.00,5.00,Home > Mugs,20696,New,US
"""
AKENEO = """\
sku;categories;enabled;family;groups;parent;name-en_US;name-de_DE;description-en_US-ecommerce;price-EUR;price-USD;color
TEE;master_tees,sale;1;shirts;;;Tee;Hemd;Soft;20.00;22.00;
TEE-R;;1;shirts;;TEE;;;;20.00;22.00;red
"""


def urls(*names: str) -> list[str]:
    return [I + name for name in names]


CASES: dict[str, tuple[str, str, dict[str, dict[str, Any]]]] = {
    "woo": (WOO, "WooCommerce", {
        "10": {"title": "Tee", "description": "Soft cotton", "category": ("Clothing", "Tees"), "group_id": "TEE",
               "images": urls("tee.jpg", "back.jpg"), "attributes": {"Color": "Red, Blue"}},
        "11": {"title": "Tee - Red", "price": 15.0, "group_id": "TEE", "category": ("Clothing", "Tees"),
               "images": urls("red.jpg"), "attributes": {"Color": "Red"}, "availability": "in_stock"},
        "12": {"title": "Tee - Blue", "price": 20.0, "group_id": "TEE", "description": "Soft cotton",
               "images": urls("tee.jpg", "back.jpg"), "availability": "out_of_stock"},
        "13": {"title": "Mug, big", "price": 5.5, "category": ("Home", "Pots, Pans & Mugs"), "group_id": None},
    }),
    "magento": (MAGENTO, "Magento", {
        "TEE-R": {"title": "Tee-Red", "price": 20.0, "category": ("Men", "Tops"), "group_id": "TEE",
                  "images": ["t/e/red.jpg", "t/e/red_2.jpg"],
                  "attributes": {"color": "Red", "material": "Cotton, organic"}},
        "TEE": {"title": "Tee", "category": ("Men", "Tops"), "group_id": "TEE", "images": ["t/e/tee.jpg"]},
    }),
    "prestashop": (PRESTA, "PrestaShop", {
        "7": {"title": "Red mug", "price": 9.9, "brand": "Acme", "gtin": "4006381333931",
              "description": "A mug", "images": urls("1.jpg", "2.jpg"), "attributes": {"Colour": "Red"}},
    }),
    "bigcommerce": (BIG_NEW, "BigCommerce", {
        "55:red": {"title": "Tee", "price": 20.0, "group_id": "55", "category": ("Shop", "Tees"),
                   "images": urls("red.jpg", "tee.jpg"), "attributes": {"Color": "Red"}},
        "55:blue": {"title": "Tee", "price": 21.0, "images": urls("blue.jpg", "tee.jpg")},
    }),
    "squarespace": (SQUARESPACE, "Squarespace", {
        "p1:red": {"title": "Tee", "price": 15.0, "category": ("clothing", "tees"), "group_id": "p1",
                   "images": urls("1.jpg", "2.jpg")},
        "p1:blue": {"title": "Tee", "price": 20.0, "attributes": {"Color": "Blue"}},
        "p2": {"title": "Mug", "price": 5.0, "images": urls("mug.jpg")},
    }),
    "wix": (WIX, "Wix", {
        "h1:red": {"title": "Tee", "price": 20.0, "brand": "Acme", "category": ("Tees",), "group_id": "h1",
                   "images": ["https://static.wixstatic.com/media/ab12_cd34~mv2.jpg", "https://e.example/2.jpg"],
                   "attributes": {"Color": "Red"}},
        "h1:blue": {"price": 20.0, "attributes": {"Color": "Blue"}},
        "h2": {"title": "Mug", "price": 5.0},
        "M-3": {"title": "Mug", "price": 6.0},
    }),
    "etsy": (ETSY, "Etsy", {
        "TEE": {"title": "Tee", "price": 20.0, "currency": "EUR", "images": urls("1.jpg", "2.jpg"),
                "attributes": {"Colour": "Red,Blue", "MATERIALS": "cotton"}},
        "etsy#2": {"title": "Mug", "images": urls("mug.jpg")},
    }),
    "amazon": (AMAZON, "Amazon", {
        "TEE": {"title": "Tee", "group_id": "TEE", "brand": "Acme"},
        "TEE-R": {"title": "Tee red", "group_id": "TEE", "price": 20.0, "gtin": "4006381333931",
                  "images": urls("red.jpg"), "category": ("shirt",)},
    }),
    "amazon-new": (AMAZON_NEW, "Amazon", {
        "TEE": {"title": "Tee", "group_id": "TEE", "images": urls("tee.jpg"), "category": ("SHIRT",)},
        "TEE-R": {"title": "Tee red", "group_id": "TEE", "price": 20.0, "gtin": "4006381333931",
                  "images": urls("red.jpg", "back.jpg"), "attributes": {"color": "Red"}},
    }),
    "amazon-report": (AMAZON_REPORT, "Amazon", {
        "MUG-R": {"title": "Red mug", "description": "A mug", "price": 5.0, "gtin": None},
    }),
    "woo-api": (WOO_API, "WooCommerce", {
        "10": {"title": "Tee", "description": "Soft", "category": ("Clothing", "Tees"), "brand": "Acme", "price": 20.0,
               "gtin": "4006381333931", "group_id": "10", "availability": "in_stock", "images": urls("1.jpg", "2.jpg"),
               "attributes": {"Color": "Black, Green"}, "link": "https://w.example/tee"},
    }),
    "magento-api": (MAGENTO_API, "Magento", {
        "MB01": {"title": "Bag", "description": "Sporty", "price": 34.0, "images": ["m/b/mb01.jpg"],
                 "attributes": {"material": "Nylon"}},
    }),
    "ebay": (EBAY, "eBay", {
        "TEE:red": {"title": "Tee", "price": 20.0, "gtin": "4006381333931", "category": ("Clothing", "Tees"),
                    "group_id": "TEE", "brand": "Acme", "attributes": {"Color": "Red", "Material": "Cotton"}},
        "TEE:blue": {"title": "Tee", "price": 21.0, "images": urls("1.jpg", "2.jpg")},
        "MUG": {"title": "Mug", "price": 5.0, "images": urls("mug.jpg")},
    }),
    "ebay-old": (EBAY_OLD, "eBay", {
        "M-1": {"title": "Mug", "price": 5.0, "currency": "USD", "images": urls("mug.jpg"), "description": "A mug"},
        "M-2": {"title": "Mug", "price": 6.0},
    }),
    "ebay-report": (EBAY_REPORT, "eBay", {
        "1100": {"title": "Mug", "price": 5.0, "currency": "USD", "category": ("Home", "Mugs")},
    }),
    "akeneo": (AKENEO, "Akeneo", {
        "TEE": {"title": "Tee", "price": 20.0, "currency": "EUR", "language": "en-US", "group_id": None},
        "TEE-R": {"title": "Tee", "description": "Soft", "group_id": "TEE", "attributes": {"color": "red"}},
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_an_export_is_read_whole(tmp_path: Path, name: str) -> None:
    text, shop, wanted = CASES[name]
    path = h.write(tmp_path / f"{name}.{'json' if name.endswith('-api') else 'csv'}", text)
    found = {product.id: product.model_dump() for product in h.products(path)}
    for fields in found.values():
        fields["images"] = [
            image["url"] or str(Path(image["path"]).relative_to(tmp_path)) for image in fields["images"]
        ]
    assert list(found) == list(wanted)
    assert {id: {f: found[id][f] for f in fields} for id, fields in wanted.items()} == wanted
    report = check_feed(path, decode_images=False)
    assert f"read as an export of {shop}" in report.notes
    header = next(note for note in [*report.notes, ""] if note.startswith("kept") or not note)
    assert not {"'Title'", "'Name'", "'name'", "'Product Name'", "'SKU'", "'Price'", "'price'"} & set(
        header.replace(";", ",").removeprefix("kept in `extra`: ").split(", ")
    )
    assert (report.rejected, report.rows) == (0, sum(row.records for row in h.rows(path)))


def test_every_shop_has_an_export_here() -> None:
    assert {shop for _, shop, _ in CASES.values()} == {shop.name for shop in SHOPS}


@pytest.mark.parametrize(
    "text", [h.GENERIC_CSV, h.META_CSV, h.SHOPIFY_OLD, h.SHOPIFY_NEW, "id,title,tags,type\n"]
)
def test_other_tables_are_no_exports(text: str) -> None:
    header = next(line for line in text.splitlines() if not line.startswith("#"))
    assert recognise(header.replace(";", ",").split(",")).name == ""


@pytest.mark.parametrize(
    "header",
    ["ID,SKU,Name,Regular price,Categories,Images", "ID,Type,SKU,Name,Categories", "Name,Type,SKU,Published"],
)
def test_a_part_of_an_export_is_recognised(header: str) -> None:
    shop = recognise(header.split(","))
    assert shop.name == "WooCommerce"


def test_columns_of_an_export_can_be_named(tmp_path: Path) -> None:
    path = h.write(tmp_path / "f.csv", WIX.replace("Tee,<p>", "x,<p>").replace("ribbon", "Label"))
    found = h.products(path, fields={"description": "title"})
    assert found[0].title == "Soft"
