// Tiles of one picture: fetched and decoded off the main thread, only those that are asked for.

const MOST_AT_ONCE = 6;
const MOST_KEPT = 320;
const AGAIN_MS = 5000;
const BUSY_MS = 400;

export class Tiles {
  constructor(picture, changed) {
    this.picture = picture;
    this.changed = changed;
    this.view = "recorded";
    this.kept = new Map(); // address -> ImageBitmap, the last used at the end
    this.loading = new Set();
    this.failed = new Map(); // address -> when it may be asked for again
    this.isBroken = false;
    this.wanted = [];
  }

  size(level) {
    const half = 2 ** level;
    return [Math.ceil(this.picture.columns / half), Math.ceil(this.picture.rows / half)];
  }

  address(level, column, row) {
    const { address, role } = this.picture;
    return `${address}/tiles/${role}/${this.view}/${level}/${column}/${row}`;
  }

  // The tile if it is there; used now, so that it goes last.
  get(level, column, row) {
    const address = this.address(level, column, row);
    const bitmap = this.kept.get(address);
    if (bitmap) {
      this.kept.delete(address);
      this.kept.set(address, bitmap);
    }
    return bitmap;
  }

  // What a screen lacks, the most urgent first; what was wanted before and not begun is forgotten.
  want(addresses) {
    this.wanted = addresses.filter((one) => !this.kept.has(one) && !this.loading.has(one) && !this.isBad(one));
    this.pump();
  }

  isBad(address) {
    return performance.now() < (this.failed.get(address) ?? 0);
  }

  pump() {
    while (this.wanted.length && this.loading.size < MOST_AT_ONCE) this.load(this.wanted.shift());
  }

  async load(address) {
    this.loading.add(address);
    let status = 0;
    try {
      const answer = await fetch(address);
      status = answer.status;
      if (!answer.ok) throw new Error(String(status));
      this.keep(address, await createImageBitmap(await answer.blob()));
      this.failed.delete(address);
      this.isBroken = false;
    } catch {
      this.fail(address, status === 503);
    }
    this.loading.delete(address);
    this.pump();
    this.changed();
  }

  // A server that is busy is asked again soon; nobody need be told.
  fail(address, isBusy) {
    const wait = isBusy ? BUSY_MS : AGAIN_MS;
    this.failed.set(address, performance.now() + wait);
    this.isBroken = !isBusy;
    setTimeout(this.changed, wait + 50);
  }

  keep(address, bitmap) {
    this.kept.set(address, bitmap);
    while (this.kept.size > MOST_KEPT) {
      const [oldest, old] = this.kept.entries().next().value;
      this.kept.delete(oldest);
      old.close();
    }
  }

  // Draw what is there of a level's tiles over coarser ones, and ask for the rest.
  draw(context, place, level, width, height) {
    const missing = [];
    for (let at = this.picture.levels - 1; at >= level; at -= 1) {
      if (at !== level && at !== this.picture.levels - 1 && !this.isGap(place, level, width, height)) continue;
      for (const tile of this.visible(place, at, width, height)) {
        const bitmap = this.get(at, tile.column, tile.row);
        if (bitmap) context.drawImage(bitmap, tile.left, tile.top, tile.width, tile.height);
        else if (at === level || at === this.picture.levels - 1) missing.push(tile);
      }
    }
    const middle = (tile) => Math.hypot(tile.left + tile.width / 2 - width / 2, tile.top + tile.height / 2 - height / 2);
    missing.sort((a, b) => b.level - a.level || middle(a) - middle(b));
    this.want(missing.map((tile) => this.address(tile.level, tile.column, tile.row)));
  }

  isGap(place, level, width, height) {
    return this.visible(place, level, width, height).some((tile) => !this.kept.has(this.address(level, tile.column, tile.row)));
  }

  // Tiles of a level that a canvas shows, with their places on it in device pixels.
  visible(place, level, width, height) {
    const half = 2 ** level;
    const side = this.picture.tile * half;
    const [columns, rows] = this.size(level);
    const first = place.toPicture(0, 0);
    const last = place.toPicture(width, height);
    const found = [];
    for (let row = Math.max(0, Math.floor(first.y / side)); row * side < Math.min(last.y, this.picture.rows); row += 1) {
      for (let column = Math.max(0, Math.floor(first.x / side)); column * side < Math.min(last.x, this.picture.columns); column += 1) {
        const start = place.toCanvas(column * side, row * side);
        const endX = Math.min(columns, (column + 1) * this.picture.tile) * half;
        const endY = Math.min(rows, (row + 1) * this.picture.tile) * half;
        const end = place.toCanvas(endX, endY);
        const left = Math.round(start.x);
        const top = Math.round(start.y);
        found.push({ level, column, row, left, top, width: Math.round(end.x) - left, height: Math.round(end.y) - top });
      }
    }
    return found;
  }

  // The grey value of a pixel, and whether it is the pixel's own and not a mean of several.
  value(x, y, level) {
    for (let at = 0; at < this.picture.levels; at += 1) {
      const px = Math.floor(x / 2 ** at);
      const py = Math.floor(y / 2 ** at);
      const bitmap = this.kept.get(this.address(at, Math.floor(px / this.picture.tile), Math.floor(py / this.picture.tile)));
      if (bitmap && (at === 0 || at >= level)) return { grey: greyOf(bitmap, px % this.picture.tile, py % this.picture.tile), isExact: at === 0 };
    }
    return null;
  }
}

let probe = null;

function greyOf(bitmap, x, y) {
  if (!probe) {
    const canvas = document.createElement("canvas");
    canvas.width = 1;
    canvas.height = 1;
    probe = canvas.getContext("2d", { willReadFrequently: true });
  }
  probe.drawImage(bitmap, -x, -y);
  return probe.getImageData(0, 0, 1, 1).data[0];
}
