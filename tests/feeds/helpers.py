"""Small feeds written by hand, and what the tests of every dialect share."""

from __future__ import annotations

from pathlib import Path

from moonshelf.errors import Problem
from moonshelf.feeds import Row, read_rows
from moonshelf.product import Product


def write(path: Path, text: str | bytes, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


def rows(path: Path, dialect: str | None = None, **options: object) -> list[Row]:
    return list(read_rows(path, dialect, **options))  # type: ignore[arg-type]


def products(path: Path, dialect: str | None = None, **options: object) -> list[Product]:
    return [row.product for row in rows(path, dialect, **options) if row.product is not None]


def problems(path: Path, dialect: str | None = None, **options: object) -> list[Problem]:
    return [problem for row in rows(path, dialect, **options) for problem in row.problems]


MERCHANT_TSV = (
    "id\ttitle\tdescription\tlink\timage link\tadditional image link\tavailability\tprice\tsale price\tbrand"
    "\tgtin\titem group id\tcolor\tproduct type\tgoogle product category\tproduct detail\tcustom label 0\n"
    "TEE-1\tRed tee & co\t<p>Soft <b>cotton</b>.</p>\thttps://shop.example/1\thttps://cdn.example/1.jpg\t"
    "https://cdn.example/1b.jpg,https://cdn.example/1c.jpg\tin stock\t12.99 EUR\t9.99 EUR\tAcme\t"
    "4006381333931\tTEE\tRed\tApparel > Tops > Tees\t212\tGeneral:Fabric:Cotton\tsummer\n"
    "TEE-2\tBlue tee\tPlain\thttps://shop.example/2\thttps://cdn.example/2.jpg\t\tout_of_stock"
    "\t1,299.00 USD\t"
    "\tAcme\t4006381333932\tTEE\tBlue\t\tApparel & Accessories > Clothing\t\t\n"
)

MERCHANT_RSS = """<?xml version="1.0" encoding="UTF-8"?>
<rss version="2.0" xmlns:g="http://base.google.com/ns/1.0"><channel>
<title>The shop</title><link>https://shop.example</link><description>All of it</description>
<item><g:id>TEE-1</g:id><title>Red tee &amp; co</title><g:title>Red tee</g:title>
<description><![CDATA[<p>Soft <b>cotton</b>.</p>]]></description><link>https://shop.example/1</link>
<g:image_link>https://cdn.example/1.jpg</g:image_link>
<g:additional_image_link>https://cdn.example/1b.jpg</g:additional_image_link>
<g:additional_image_link>https://cdn.example/1c.jpg</g:additional_image_link>
<g:price>12,99 EUR</g:price><g:gtin>4006381333931</g:gtin><g:item_group_id>TEE</g:item_group_id>
<g:availability>in stock</g:availability><g:product_type>Apparel &gt; Tees</g:product_type>
<g:shipping><g:country>DE</g:country><g:price>4.90 EUR</g:price></g:shipping>
<g:product_detail><g:section_name>General</g:section_name><g:attribute_name>Fabric</g:attribute_name>
<g:attribute_value>Cotton</g:attribute_value></g:product_detail><g:color>Red</g:color></item>
<item><g:id>TEE-2</g:id>
<g:structured_title><g:digital_source_type>trained_algorithmic_media</g:digital_source_type>
<g:content>Blue tee</g:content></g:structured_title></item>
</channel></rss>"""

MERCHANT_ATOM = """<?xml version="1.0"?>
<feed xmlns="http://www.w3.org/2005/Atom" xmlns:g="http://base.google.com/ns/1.0">
<title>The shop</title><link rel="self" href="https://shop.example/feed"/>
<entry><id>urn:tee-1</id><g:id>TEE-1</g:id><title>Red tee</title><link href="https://shop.example/1"/>
<summary>Soft cotton.</summary><g:image_link>https://cdn.example/1.jpg</g:image_link></entry>
</feed>"""

SHOPIFY_OLD = (
    "Handle,Title,Body (HTML),Vendor,Product Category,Type,Tags,Published,Option1 Name,Option1 Value,"
    "Option2 Name,Option2 Value,Variant SKU,Variant Price,Variant Barcode,Image Src,Image Position,"
    "Variant Image,Google Shopping / Gender,Status\n"
    'tee,Tee,"<p>Soft\ncotton</p>",Acme,Apparel > Tops,Tees,"summer, sale",true,Color,Red,Size,S,T-R-S,20.00,'
    "4006381333931,https://cdn.example/front.jpg,1,https://cdn.example/red.jpg,unisex,active\n"
    "tee,,,,,,,,,Red,,M,T-R-M,22.00,,https://cdn.example/red.jpg,2,https://cdn.example/red.jpg,,\n"
    "tee,,,,,,,,,Blue,,S,T-B-S,20.00,,https://cdn.example/blue.jpg,3,https://cdn.example/blue.jpg,,\n"
    "tee,,,,,,,,,,,,,,,https://cdn.example/detail.jpg,4,,,\n"
    "mug,Mug,A mug,Acme,,Mugs,,true,Title,Default Title,,,MUG,5.00,,https://cdn.example/mug.jpg,1,,,active\n"
)

SHOPIFY_NEW = (
    "Title,URL handle,Description,Vendor,Product category,Type,Tags,Status,SKU,Barcode,Option1 name,"
    "Option1 value,Option2 name,Option2 value,Price,Product image URL,Image position,Image alt text,"
    "Variant image URL,Color (product.metafields.shopify.color-pattern)\n"
    "Tee,tee,<p>Soft cotton</p>,Acme,Apparel > Tops,Tees,summer,Active,T-R-S,4006381333931,Color,Red,Size,S,"
    "20.00,https://cdn.example/front.jpg,1,Front,https://cdn.example/red.jpg,red\n"
    ",tee,,,,,,,T-R-M,,,Red,,M,22.00,https://cdn.example/red.jpg,2,,https://cdn.example/red.jpg,\n"
    ",tee,,,,,,,T-B-S,,,Blue,,S,20.00,https://cdn.example/blue.jpg,3,,https://cdn.example/blue.jpg,\n"
    ",tee,,,,,,,,,,,,,,https://cdn.example/detail.jpg,4,,,\n"
    "Mug,,A mug,Acme,,Mugs,,Active,MUG,,,,,,5.00,https://cdn.example/mug.jpg,1,,,\n"
)

META_CSV = (
    "# app_id=1,exported=today\n# Fields: id is required\n"
    "id,title,description,availability,condition,price,link,brand,image[1].url,image[0].url,image[0].tag[0],"
    "fb_product_category,color\n"
    "TEE-1,Red tee,Soft cotton,in stock,new,12.99 USD,https://shop.example/1,Acme,https://cdn.example/1b.jpg,"
    "https://cdn.example/1.jpg,front,Clothing > Tops,Red\n"
)

JSONLD = """{"@context": "https://schema.org", "@graph": [
 {"@type": "BreadcrumbList", "itemListElement": [{"@type": "ListItem", "name": "Tees"}]},
 {"@id": "#acme", "@type": "Brand", "name": "Acme"},
 {"@id": "#tee", "@type": "ProductGroup", "name": "Tee", "productGroupID": "TEE", "brand": {"@id": "#acme"},
  "description": "<p>Soft cotton</p>", "image": "https://cdn.example/front.jpg", "variesBy": "color",
  "material": "cotton", "hasVariant": [{"@id": "#red"}, {"@type": "Product", "sku": "T-B", "color": "Blue"}]},
 {"@id": "#red", "@type": "Product", "sku": "T-R", "name": "Red tee", "color": "Red",
  "gtin13": "4006381333931", "isVariantOf": {"@id": "#tee"},
  "image": [{"@type": "ImageObject", "contentUrl": "https://cdn.example/red.jpg"}],
  "offers": {"@type": "Offer", "price": "20.00", "priceCurrency": "EUR",
             "availability": "https://schema.org/InStock"}},
 {"@type": "Product", "sku": "MUG", "name": {"@value": "Becher", "@language": "de"},
  "additionalProperty": [{"@type": "PropertyValue", "name": "volume", "value": 0.3, "unitText": "l"}],
  "offers": [{"@type": "AggregateOffer", "lowPrice": 5, "highPrice": 7, "priceCurrency": "EUR"}],
  "isSimilarTo": {"@type": "Product", "name": "Other mug", "sku": "OTHER"}}
]}"""

AGENTIC_JSONL = """{"item_id": "T-10", "group_id": "TRAIL", "listing_has_variations": true, "variant_dict": \
{"color": "Black", "size": "10"}, "title": "Trail shoe", "description": "Waterproof", \
"url": "https://shop.example/t", "brand": "North", "seller_name": "North Outdoor", \
"image_url": "https://cdn.example/t.jpg", "additional_image_urls": ["https://cdn.example/u.jpg"], \
"price": "79.99 USD", "availability": "in_stock", "product_category": "Apparel > Shoes"}
"""
AGENTIC_CSV = (
    "item_id,title,description,url,brand,seller_name,image_url,additional_image_urls,price,availability,"
    "Custom_variant1_category,Custom_variant1_option,is_eligible_search\n"
    "T-10,Trail shoe,Waterproof,https://shop.example/t,North,North Outdoor,https://cdn.example/t.jpg,"
    '"https://cdn.example/u.jpg,https://cdn.example/v.jpg",79.99 USD,pre_order,Fit,Wide,true\n'
)

GENERIC_CSV = (
    "SKU;Name;Image URL;Category;Price;Colour;EAN;Stock shelf\n"
    "a-1;Red mug;pics/mug.jpg;Kitchen > Mugs;5,50 €;red;4006381333931;B7\n"
    "a-2;Blue mug;pics/blue.jpg;Kitchen > Mugs;6,00 €;blue;;B8\n"
)
