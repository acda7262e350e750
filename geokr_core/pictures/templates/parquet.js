"use strict";
// A GeoParquet file of a few columns, written by hand: plain encoding, no compression, one row group (parquet-format 2.x).

class Compact {  // Thrift's compact protocol, as much of it as a Parquet footer needs
  constructor() { this.bytes = []; this.last = [0]; }
  varint(value) { for (let v = BigInt(value); ; v >>= 7n) { if (v < 128n) { this.bytes.push(Number(v)); return; } this.bytes.push(Number(v & 127n) | 128); } }
  field(id, type) { const before = this.last[this.last.length - 1]; this.bytes.push(((id - before) << 4) | type); this.last[this.last.length - 1] = id; }
  i32(id, value) { this.field(id, 5); this.varint(value * 2); }
  i64(id, value) { this.field(id, 6); this.varint(BigInt(value) * 2n); }
  raw(bytes) { this.varint(bytes.length); for (const byte of bytes) this.bytes.push(byte); }
  text(id, value) { this.field(id, 8); this.raw(new TextEncoder().encode(value)); }
  list(id, type, size) { this.field(id, 9); if (size < 15) this.bytes.push((size << 4) | type); else { this.bytes.push(0xf0 | type); this.varint(size); } }
  struct(body) { this.last.push(0); body(); this.bytes.push(0); this.last.pop(); }
  nested(id, body) { this.field(id, 12); this.struct(body); }
}

const DOUBLE = 5, BYTE_ARRAY = 6;

function plainPage(column) {
  if (column.type === DOUBLE) {
    const view = new DataView(new ArrayBuffer(8 * column.values.length));
    column.values.forEach((value, k) => view.setFloat64(8 * k, value, true));
    return new Uint8Array(view.buffer);
  }
  const parts = column.values.map((value) => (typeof value === "string" ? new TextEncoder().encode(value) : value));
  const page = new Uint8Array(parts.reduce((sum, part) => sum + 4 + part.length, 0));
  let at = 0;
  for (const part of parts) {
    new DataView(page.buffer).setUint32(at, part.length, true);
    page.set(part, at + 4);
    at += 4 + part.length;
  }
  return page;
}

function pageHeader(size, count) {
  const out = new Compact();
  out.struct(() => {
    out.i32(1, 0); out.i32(2, size); out.i32(3, size);
    out.nested(5, () => { out.i32(1, count); out.i32(2, 0); out.i32(3, 3); out.i32(4, 3); });
  });
  return Uint8Array.from(out.bytes);
}

/** Columns ({name, type, values, utf8}) of equal length and texts for the footer, as the bytes of a Parquet file. */
function parquetFile(columns, metadata) {
  const magic = new TextEncoder().encode("PAR1"), count = columns[0].values.length, chunks = [];
  let offset = 4;
  const placed = columns.map((column) => {
    const page = plainPage(column), header = pageHeader(page.length, count), start = offset;
    chunks.push(header, page);
    offset += header.length + page.length;
    return { ...column, start, size: header.length + page.length };
  });
  const out = new Compact();
  out.struct(() => {
    out.i32(1, 1);
    out.list(2, 12, columns.length + 1);
    out.struct(() => { out.text(4, "schema"); out.i32(5, columns.length); });
    for (const column of columns) out.struct(() => { out.i32(1, column.type); out.i32(3, 0); out.text(4, column.name); if (column.utf8) out.i32(6, 0); });
    out.i64(3, count);
    out.list(4, 12, 1);
    out.struct(() => {
      out.list(1, 12, placed.length);
      for (const column of placed) out.struct(() => {
        out.i64(2, column.start);
        out.nested(3, () => {
          out.i32(1, column.type);
          out.list(2, 5, 1); out.varint(0);
          out.list(3, 8, 1); out.raw(new TextEncoder().encode(column.name));
          out.i32(4, 0); out.i64(5, count); out.i64(6, column.size); out.i64(7, column.size); out.i64(9, column.start);
        });
      });
      out.i64(2, offset - 4); out.i64(3, count);
    });
    const entries = Object.entries(metadata);
    out.list(5, 12, entries.length);
    for (const [key, value] of entries) out.struct(() => { out.text(1, key); out.text(2, value); });
    out.text(6, "GeoKR");
  });
  const length = new Uint8Array(4);
  new DataView(length.buffer).setUint32(0, out.bytes.length, true);
  return new Blob([magic, ...chunks, Uint8Array.from(out.bytes), length, magic], { type: "application/vnd.apache.parquet" });
}

function wkbPoint(lon, lat) {
  const view = new DataView(new ArrayBuffer(21));
  view.setUint8(0, 1); view.setUint32(1, 1, true); view.setFloat64(5, lon, true); view.setFloat64(13, lat, true);
  return new Uint8Array(view.buffer);
}
