// <ox-map>: the disk as a picture. Each cell is a part of the disk, filled as far as it is stored, in the
// colour and texture of how it is stored. Zooms to single clusters; the keyboard reads it cell by cell.

import { OxcowError, type DiskImage, type Extent, type Size } from 'oxcow';
import { css, html, LitElement, nothing, type PropertyValues, type TemplateResult } from 'lit';

import { asError } from '../trouble.js';
import { base } from '../styles.js';
import { count, exact, hex, percent, size } from '../words.js';

/** A kind of content: its name here decides colour and texture, `at` is the place of its share in an overview. */
export interface MapKind {
  readonly kind: string;
  readonly at: number;
  readonly name: string;
  readonly what: string;
}

/** What a map is drawn from: an image, or what is told in the same form. */
export type MapSource = Pick<DiskImage, 'virtualSize' | 'overview' | 'map'>;

/** The engine's kinds, from the bottom of a cell to its top. */
const KINDS: readonly MapKind[] = [
  { kind: 'data', at: 2, name: 'Stored', what: 'stored in this image' },
  { kind: 'compressed', at: 3, name: 'Compressed', what: 'stored compressed' },
  { kind: 'backing', at: 4, name: 'From a backing file', what: 'stored in a backing file' },
  { kind: 'damaged', at: 5, name: 'Damaged', what: 'damaged: the tables say something impossible' },
  { kind: 'zero', at: 1, name: 'Marked as zeros', what: 'marked as zeros' },
  { kind: 'unallocated', at: 0, name: 'Nothing stored', what: 'nothing stored, reads as zeros' },
];

/** Bytes of a share record, as the engine gives them. */
const RECORD = 6;
const GAP = 1;
const TABLE_ROWS = 50;

interface Picture {
  start: bigint;
  length: bigint;
  cells: number;
  columns: number;
  /** Pixels of a cell with its gap. */
  step: number;
  shares: Uint8Array;
  totals: Size[];
}

export class ClusterMap extends LitElement {
  static override properties = {
    image: { attribute: false },
    view: { attribute: false },
    granularity: { attribute: false },
    kinds: { attribute: false },
    what: { attribute: false },
    contentOf: { attribute: false },
    _picture: { state: true },
    _cursor: { state: true },
    _about: { state: true },
    _hover: { state: true },
    _progress: { state: true },
    _error: { state: true },
    _rows: { state: true },
    _rowsNext: { state: true },
    _tableOpen: { state: true },
  };
  declare image: MapSource | undefined;
  declare view: number;
  /** The smallest part worth a cell: the cluster size in bytes. */
  declare granularity: number;
  /** What a cell can consist of, from its bottom to its top. */
  declare kinds: readonly MapKind[];
  /** What the map is of, for those who do not see it. */
  declare what: string;
  /** What the table says of an extent. */
  declare contentOf: (extent: Extent) => string;
  declare _picture: Picture | undefined;
  declare _cursor: number;
  declare _about: string;
  /** The cell under the pointer. */
  declare _hover: number | undefined;
  declare _progress: number | undefined;
  declare _error: OxcowError | undefined;
  declare _rows: Extent[];
  declare _rowsNext: Size | undefined;
  declare _tableOpen: boolean;

  /** The part of the disk that is shown. */
  #start = 0n;
  #length = 0n;
  #stop: AbortController | undefined;
  #aboutTimer: ReturnType<typeof setTimeout> | undefined;
  #width = 0;
  #resizes = new ResizeObserver(([entry]) => {
    const width = Math.floor(entry?.contentRect.width ?? 0);
    if (width > 0 && width !== this.#width) {
      this.#width = width;
      void this.#load();
    }
  });
  #schemes = ['(prefers-color-scheme: dark)', '(forced-colors: active)'].map((query) => matchMedia(query));
  #redraw = () => this.#draw();

  static override styles = [
    base,
    css`
      .bar {
        display: flex;
        flex-wrap: wrap;
        align-items: center;
        justify-content: space-between;
        gap: 0.5rem 1rem;
        margin-bottom: 0.75rem;
      }
      .range {
        font-size: 0.875rem;
      }
      .whole {
        position: relative;
        height: 6px;
        margin-bottom: 0.5rem;
        border-radius: 3px;
        background: var(--kind-unallocated);
        overflow: hidden;
        forced-color-adjust: none;
      }
      .whole > span {
        position: absolute;
        inset-block: 0;
        min-width: 3px;
        border-radius: 3px;
        background: var(--accent);
      }
      .map {
        position: relative;
        border-radius: 6px;
        touch-action: pan-y;
        min-height: 4rem;
      }
      canvas {
        display: block;
        width: 100%;
        cursor: crosshair;
      }
      .about {
        min-height: 1.5em;
        margin-top: 0.625rem;
        font-size: 0.875rem;
      }
      .legend {
        display: flex;
        flex-wrap: wrap;
        gap: 0.375rem 1.125rem;
        margin-top: 0.75rem;
        font-size: 0.8125rem;
      }
      .legend li {
        display: flex;
        align-items: center;
        gap: 0.4rem;
      }
      .legend canvas {
        width: 14px;
        height: 14px;
        border-radius: 2px;
        cursor: auto;
      }
      .swatch {
        display: contents;
      }
      .data {
        color: var(--kind-data);
      }
      .compressed {
        color: var(--kind-compressed);
      }
      .backing {
        color: var(--kind-backing);
      }
      .zero {
        color: var(--kind-zero);
      }
      .damaged {
        color: var(--kind-damaged);
      }
      .unallocated {
        color: var(--kind-unallocated);
      }
      .keys {
        margin-top: 0.75rem;
      }
      kbd {
        font: 0.75rem var(--mono);
        padding: 0.05rem 0.35rem;
        border: 1px solid var(--line);
        border-radius: 4px;
        background: var(--sunken);
      }
      details {
        margin-top: 0.5rem;
      }
      td {
        white-space: nowrap;
      }
      .loading {
        position: absolute;
        inset: 0 0 auto 0;
      }
    `,
  ];

  constructor() {
    super();
    this.view = 0;
    this.granularity = 65536;
    this.kinds = KINDS;
    this.what = 'cluster map';
    this.contentOf = kindOf;
    this._cursor = 0;
    this._about = '';
    this._rows = [];
    this._tableOpen = false;
  }

  override connectedCallback(): void {
    super.connectedCallback();
    for (const query of this.#schemes) query.addEventListener('change', this.#redraw);
  }

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    for (const query of this.#schemes) query.removeEventListener('change', this.#redraw);
    this.#resizes.disconnect();
    this.#stop?.abort();
  }

  override firstUpdated(): void {
    const map = this.renderRoot.querySelector('.map');
    if (map) this.#resizes.observe(map);
  }

  override willUpdate(changed: PropertyValues<this>): void {
    if (changed.has('view') && this.image) {
      this.#start = 0n;
      this.#length = BigInt(this.image.virtualSize);
      this._cursor = 0;
      this._picture = undefined;
      void this.#load();
    }
  }

  override updated(changed: PropertyValues<this>): void {
    // The pointer changes words only.
    if (changed.size > 1 || !changed.has('_hover')) this.#draw();
  }

  override render(): TemplateResult {
    const picture = this._picture;
    const whole = BigInt(this.image?.virtualSize ?? 0);
    const zoomed = this.#length < whole;
    return html`
      <div class="bar">
        <p class="range number">
          ${whole === 0n
            ? 'The disk is empty.'
            : html`${zoomed ? html`<strong>${size(this.#length)}</strong> from ${hex(this.#start)}` : html`<strong>All ${size(whole)}</strong>`}${picture && picture.start === this.#start && picture.length === this.#length
                ? html`<span class="muted">: ${count(picture.cells)} cells of ${size(this.#cellLength(picture, 0))}</span>`
                : nothing}`}
        </p>
        <div class="row">
          <button class="icon" ?disabled=${!picture || !this.#canZoomIn()} @click=${() => this.#zoom(4)} aria-label="Zoom in">+</button>
          <button class="icon" ?disabled=${!zoomed} @click=${() => this.#zoom(0.25)} aria-label="Zoom out">−</button>
          <button ?disabled=${!zoomed} @click=${() => this.#showAll()}>Whole disk</button>
          <button ?disabled=${!picture} @click=${() => this.#showBytes()}>Show bytes here</button>
        </div>
      </div>
      <div class="whole" aria-hidden="true" ?hidden=${!zoomed}><span></span></div>
      <div
        class="map"
        role="slider"
        tabindex="0"
        aria-label=${`Position in the ${this.what}`}
        aria-describedby="keys"
        aria-valuemin="0"
        aria-valuemax=${Math.max((picture?.cells ?? 1) - 1, 0)}
        aria-valuenow=${this._cursor}
        aria-valuetext=${picture ? this.#describe(picture, this._cursor) : 'not drawn yet'}
        @keydown=${this.#key}
        @pointermove=${this.#hover}
        @pointerleave=${() => (this._hover = undefined)}
        @pointerdown=${this.#press}
        @dblclick=${() => this.#zoom(4)}
        @wheel=${this.#wheel}
      >
        <canvas aria-hidden="true"></canvas>
        ${this._progress === undefined ? nothing : html`<progress class="loading" aria-label="Reading the map" max="1" .value=${this._progress}></progress>`}
      </div>
      ${this._error ? html`<p class="about" role="alert">The map could not be read: ${this._error.message}</p>` : html`<p class="about number">${picture && this._hover !== undefined ? this.#describe(picture, this._hover) : this._about}</p>`}
      <ul class="legend" aria-label=${this.kinds === KINDS ? 'What the cells mean' : `What the cells of the ${this.what} mean`}>
        ${this.kinds.map(({ kind, name, at }) => {
          const total = picture?.totals[at] ?? 0;
          // A kind that is not there needs no explaining; its swatch still gives the colour.
          const shown = total != 0 || kind === 'data' || kind === 'unallocated';
          return html`<li ?hidden=${!shown}>
            <span class="swatch ${kind}"><canvas width="28" height="28" data-kind=${kind} aria-hidden="true"></canvas></span>
            <span class="number">${name} <span class="muted" title=${exact(total)}>${total == 0 ? 'none' : `${size(total)}, ${percent(total, this.#length)}`}</span></span>
          </li>`;
        })}
      </ul>
      <p class="keys small muted" id="keys">
        Arrow keys move by cells, <kbd>Page Up</kbd> and <kbd>Page Down</kbd> by rows of ten, <kbd>+</kbd> and <kbd>−</kbd> zoom,
        <kbd>0</kbd> shows the whole disk, <kbd>Enter</kbd> shows the bytes.
      </p>
      <details @toggle=${this.#toggleTable}>
        <summary>The same as a table</summary>
        ${this._tableOpen ? this.#table() : nothing}
      </details>
    `;
  }

  #table(): TemplateResult {
    return html`<div class="scroll" tabindex="0" role="region" aria-label=${this.kinds === KINDS ? 'Extents of the disk' : `Extents of the ${this.what}`}>
        <table>
          <caption class="hide">What is stored where, from ${hex(this.#start)} on</caption>
          <thead>
            <tr>
              <th scope="col">Starts at</th>
              <th scope="col" class="end">Length</th>
              <th scope="col">Content</th>
              <th scope="col">Stored at byte</th>
            </tr>
          </thead>
          <tbody class="number">
            ${this._rows.map(
              (extent) => html`<tr>
                <td class="mono">${hex(extent.start)}</td>
                <td class="end" title=${exact(extent.length)}>${size(extent.length)}</td>
                <td>${this.contentOf(extent)}</td>
                <td class="mono">${extent.offset === undefined ? '–' : hex(extent.offset)}</td>
              </tr>`,
            )}
          </tbody>
        </table>
      </div>
      ${this._rowsNext === undefined ? nothing : html`<button @click=${() => this.#moreRows()}>Show more</button>`}`;
  }

  /** Reads what the picture needs and draws it. */
  async #load(): Promise<void> {
    const { image } = this;
    if (!image || !this.#width || this.#length === 0n) {
      this._picture = undefined;
      return;
    }
    this.#stop?.abort();
    const stop = new AbortController();
    this.#stop = stop;
    const layout = layoutFor(this.#width, this.#length, this.granularity);
    const [start, length] = [this.#start, this.#length];
    const slow = setTimeout(() => !stop.signal.aborted && (this._progress = 0), 200);
    try {
      const { shares, totals } = await image.overview({
        start: toSize(start),
        length: toSize(length),
        cells: layout.cells,
        signal: stop.signal,
        onProgress: (done, total) => this._progress !== undefined && (this._progress = done / total),
      });
      if (stop.signal.aborted) return;
      this._error = undefined;
      this._picture = { ...layout, start, length, shares, totals };
      this._cursor = Math.min(this._cursor, layout.cells - 1);
      this.#tellAbout();
      if (this._tableOpen) await this.#firstRows();
      this.dispatchEvent(new CustomEvent('activity', { bubbles: true, composed: true }));
    } catch (error) {
      if (!stop.signal.aborted) this._error = asError(error);
    } finally {
      clearTimeout(slow);
      if (this.#stop === stop) this._progress = undefined;
    }
  }

  #draw(): void {
    const whole = this.renderRoot.querySelector<HTMLElement>('.whole > span');
    const total = Number(this.image?.virtualSize ?? 0);
    if (whole && total > 0) {
      whole.style.left = `${(Number(this.#start) / total) * 100}%`;
      whole.style.width = `${(Number(this.#length) / total) * 100}%`;
    }
    const brushes = this.#brushes();
    for (const swatch of this.renderRoot.querySelectorAll<HTMLCanvasElement>('.legend canvas')) {
      const context = swatch.getContext('2d');
      if (!context) continue;
      context.clearRect(0, 0, 28, 28);
      context.fillStyle = brushes.get('unallocated')?.fill ?? 'transparent';
      context.fillRect(0, 0, 28, 28);
      paint(context, brushes.get(swatch.dataset['kind'] ?? ''), 0, 0, 28, 28);
      outline(context, brushes.text, 28, 28);
    }

    const canvas = this.renderRoot.querySelector<HTMLCanvasElement>('.map canvas');
    const picture = this._picture;
    if (!canvas) return;
    const scale = devicePixelRatio || 1;
    const rows = picture ? Math.ceil(picture.cells / picture.columns) : 4;
    const height = picture ? rows * picture.step : 64;
    canvas.width = Math.round(this.#width * scale);
    canvas.height = Math.round(height * scale);
    canvas.style.height = `${height}px`;
    const context = canvas.getContext('2d');
    if (!context || !picture) return;
    context.scale(scale, scale);
    const cell = picture.step - GAP;
    for (let index = 0; index < picture.cells; index += 1) {
      const x = (index % picture.columns) * picture.step;
      const y = Math.floor(index / picture.columns) * picture.step;
      context.fillStyle = brushes.get('unallocated')?.fill ?? 'transparent';
      context.fillRect(x, y, cell, cell);
      if (brushes.forced) outline(context, brushes.text, cell, cell, x, y);
      let filled = 0;
      for (const { kind, at } of this.kinds) {
        if (kind === 'unallocated') continue;
        const share = picture.shares[index * RECORD + at] ?? 0;
        if (share === 0) continue;
        const part = Math.min(Math.max((share / 255) * cell, 1.5), cell - filled);
        paint(context, brushes.get(kind), x, y + cell - filled - part, cell, part);
        filled += part;
      }
    }
    const x = (this._cursor % picture.columns) * picture.step;
    const y = Math.floor(this._cursor / picture.columns) * picture.step;
    context.strokeStyle = brushes.text;
    context.lineWidth = 2;
    context.strokeRect(x, y, cell, cell);
  }

  /** The colours as they are now, from the legend's swatches. */
  #brushes(): Brushes {
    const brushes = new Brushes(getComputedStyle(this).color);
    for (const { kind } of this.kinds) {
      const swatch = this.renderRoot.querySelector(`.legend .${kind}`);
      if (swatch) brushes.add(kind, getComputedStyle(swatch).color);
    }
    return brushes;
  }

  #cellStart(picture: Picture, index: number): bigint {
    return picture.start + (picture.length * BigInt(index)) / BigInt(picture.cells);
  }

  #cellLength(picture: Picture, index: number): bigint {
    return this.#cellStart(picture, index + 1) - this.#cellStart(picture, index);
  }

  #describe(picture: Picture, index: number): string {
    const parts = this.kinds.map(({ at, what }) => ({ what, share: picture.shares[index * RECORD + at] ?? 0 })).filter(({ share }) => share > 0);
    const content =
      parts.length === 1 ? parts[0]?.what : parts.map(({ what, share }) => `${percent(share, 255)} ${what}`).join(', ');
    return `${hex(this.#cellStart(picture, index))}, ${size(this.#cellLength(picture, index))}: ${content}`;
  }

  /** Says what the cell under the cursor is, and where exactly it is stored if it is all one run. */
  #tellAbout(): void {
    const { image } = this;
    const picture = this._picture;
    if (!image || !picture) return;
    const index = this._cursor;
    this._about = this.#describe(picture, index);
    clearTimeout(this.#aboutTimer);
    this.#aboutTimer = setTimeout(async () => {
      const [start, length] = [this.#cellStart(picture, index), this.#cellLength(picture, index)];
      try {
        const { extents, next } = await image.map({ start: toSize(start), length: toSize(length), limit: 1 });
        const [extent] = extents;
        if (this._cursor !== index || this._picture !== picture || next !== undefined || extent?.offset === undefined) return;
        this._about = `${this.#describe(picture, index)}; at byte ${hex(extent.offset)} of the file`;
      } catch {
        // The description that is there already says what is wrong with the cell.
      }
    }, 150);
  }

  #move(index: number): void {
    const picture = this._picture;
    if (!picture) return;
    this._cursor = Math.max(0, Math.min(index, picture.cells - 1));
    this.#tellAbout();
  }

  #canZoomIn(): boolean {
    return this.#length > BigInt(this.granularity) * 8n;
  }

  /** Where the cursor is in the part that is wanted, whether or not its picture is there yet. */
  #cursorAt(): bigint {
    const { cells } = layoutFor(this.#width, this.#length, this.granularity);
    return this.#start + (this.#length * BigInt(this._cursor)) / BigInt(cells);
  }

  /** Shows a part that is smaller by `factor`, around the cursor. */
  #zoom(factor: number): void {
    const whole = BigInt(this.image?.virtualSize ?? 0);
    if (!this._picture || (factor > 1 && !this.#canZoomIn())) return;
    const unit = BigInt(this.granularity);
    const cursor = this.#cursorAt();
    const wanted = factor > 1 ? this.#length / BigInt(factor) : this.#length * BigInt(1 / factor);
    const length = clamp(roundUp(wanted, unit), unit, whole);
    const start = clamp(((cursor - length / 2n) / unit) * unit, 0n, whole - length);
    this.#show(start, length, cursor);
  }

  #showAll(): void {
    if (this._picture) this.#show(0n, BigInt(this.image?.virtualSize ?? 0), this.#cursorAt());
  }

  #show(start: bigint, length: bigint, cursor: bigint): void {
    this.#start = start;
    this.#length = length;
    const { cells } = layoutFor(this.#width, length, this.granularity);
    this._cursor = Math.min(Number(((cursor - start) * BigInt(cells)) / length), cells - 1);
    void this.#load();
    this.requestUpdate();
  }

  #showBytes(): void {
    const picture = this._picture;
    if (!picture) return;
    const offset = this.#cellStart(picture, this._cursor);
    this.dispatchEvent(new CustomEvent('show-bytes', { detail: offset, bubbles: true, composed: true }));
  }

  #key(event: KeyboardEvent): void {
    const picture = this._picture;
    if (!picture || event.ctrlKey || event.metaKey || event.altKey) return;
    const page = picture.columns * 10;
    const steps: Record<string, () => void> = {
      ArrowRight: () => this.#move(this._cursor + 1),
      ArrowLeft: () => this.#move(this._cursor - 1),
      ArrowDown: () => this.#move(this._cursor + picture.columns),
      ArrowUp: () => this.#move(this._cursor - picture.columns),
      PageDown: () => this.#move(this._cursor + page),
      PageUp: () => this.#move(this._cursor - page),
      Home: () => this.#move(0),
      End: () => this.#move(picture.cells - 1),
      '+': () => this.#zoom(4),
      '=': () => this.#zoom(4),
      '-': () => this.#zoom(0.25),
      '0': () => this.#showAll(),
      Enter: () => this.#showBytes(),
    };
    const step = steps[event.key];
    if (!step) return;
    event.preventDefault();
    step();
  }

  #cellAt(event: MouseEvent): number | undefined {
    const picture = this._picture;
    const canvas = this.renderRoot.querySelector('.map canvas');
    if (!picture || !canvas) return undefined;
    const box = canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left) / picture.step);
    const index = Math.floor((event.clientY - box.top) / picture.step) * picture.columns + column;
    return column >= 0 && column < picture.columns && index >= 0 && index < picture.cells ? index : undefined;
  }

  #hover(event: PointerEvent): void {
    this._hover = event.pointerType === 'mouse' ? this.#cellAt(event) : undefined;
  }

  #press(event: PointerEvent): void {
    const index = this.#cellAt(event);
    if (index !== undefined) this.#move(index);
  }

  #wheel(event: WheelEvent): void {
    if (!event.ctrlKey) return; // Plain scrolling belongs to the page.
    event.preventDefault();
    const index = this.#cellAt(event);
    if (index !== undefined) this._cursor = index;
    this.#zoom(event.deltaY < 0 ? 4 : 0.25);
  }

  #toggleTable(event: Event): void {
    this._tableOpen = (event.target as HTMLDetailsElement).open;
    if (this._tableOpen) void this.#firstRows();
  }

  async #firstRows(): Promise<void> {
    this._rows = [];
    this._rowsNext = toSize(this.#start);
    await this.#moreRows();
  }

  async #moreRows(): Promise<void> {
    const { image } = this;
    if (!image || this._rowsNext === undefined) return;
    const end = this.#start + this.#length;
    try {
      const page = await image.map({
        start: this._rowsNext,
        length: toSize(end - BigInt(this._rowsNext)),
        limit: TABLE_ROWS,
      });
      this._rows = [...this._rows, ...page.extents];
      this._rowsNext = page.next;
      this._error = undefined;
    } catch (error) {
      this._error = asError(error);
    }
  }
}

/** How the cells are laid out: as large as they can be and still fill the height there is. */
function layoutFor(width: number, length: bigint, granularity: number): Pick<Picture, 'cells' | 'columns' | 'step'> {
  const clusters = Number((length + BigInt(granularity) - 1n) / BigInt(granularity));
  const height = width < 500 ? 300 : 240;
  for (const step of [36, 28, 22, 18, 15, 12, 10]) {
    const columns = Math.max(1, Math.floor((width + GAP) / step));
    if (columns * Math.floor(height / step) >= clusters) return { cells: Math.max(clusters, 1), columns, step };
  }
  const step = 10;
  const columns = Math.max(1, Math.floor((width + GAP) / step));
  return { cells: columns * Math.floor(height / step), columns, step };
}

interface Brush {
  fill: string;
  texture: CanvasPattern | undefined;
}

/** The colours and textures of the kinds. */
class Brushes {
  readonly forced = matchMedia('(forced-colors: active)').matches;
  #kinds = new Map<string, Brush>();

  constructor(readonly text: string) {}

  get(kind: string): Brush | undefined {
    return this.#kinds.get(kind);
  }

  add(kind: string, fill: string): void {
    this.#kinds.set(kind, { fill, texture: texture(kind) });
  }
}

function paint(context: CanvasRenderingContext2D, brush: Brush | undefined, x: number, y: number, width: number, height: number): void {
  if (!brush) return;
  context.fillStyle = brush.fill;
  context.fillRect(x, y, width, height);
  if (!brush.texture) return;
  context.fillStyle = brush.texture;
  context.fillRect(x, y, width, height);
}

function outline(context: CanvasRenderingContext2D, colour: string, width: number, height: number, x = 0, y = 0): void {
  context.globalAlpha = 0.35;
  context.strokeStyle = colour;
  context.lineWidth = 1;
  context.strokeRect(x + 0.5, y + 0.5, width - 1, height - 1);
  context.globalAlpha = 1;
}

const textures = new Map<string, CanvasPattern | undefined>();

/** Lines and dots over a colour, so that the kinds differ without it. */
function texture(kind: string): CanvasPattern | undefined {
  const dark = matchMedia('(prefers-color-scheme: dark)').matches;
  const key = `${kind} ${dark}`;
  if (textures.has(key)) return textures.get(key);
  const tile = document.createElement('canvas');
  tile.width = tile.height = 4;
  const context = tile.getContext('2d');
  const dots: Record<string, [number, number][]> = {
    compressed: [[0, 3], [1, 2], [2, 1], [3, 0]],
    backing: [[0, 0], [2, 2]],
    zero: [[0, 0], [1, 0], [2, 0], [3, 0]],
    damaged: [[0, 0], [1, 1], [2, 2], [3, 3], [3, 1], [1, 3]],
  };
  let pattern: CanvasPattern | undefined;
  if (context && dots[kind]) {
    context.fillStyle = dark ? 'rgb(0 0 0 / 50%)' : 'rgb(255 255 255 / 55%)';
    for (const [x, y] of dots[kind]) context.fillRect(x, y, 1, 1);
    pattern = context.createPattern(tile, 'repeat') ?? undefined;
  }
  textures.set(key, pattern);
  return pattern;
}

function kindOf(extent: Extent): string {
  const where = extent.depth === 0 ? '' : extent.depth === 1 ? ', in the backing file' : `, in backing file ${extent.depth}`;
  if (extent.data) return `${extent.compressed ? 'Compressed' : 'Stored'}${where}`;
  return extent.present ? `Marked as zeros${where}` : 'Nothing stored';
}

function toSize(value: bigint): Size {
  return value <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(value) : value;
}

function clamp(value: bigint, least: bigint, most: bigint): bigint {
  return value < least ? least : value > most ? most : value;
}

function roundUp(value: bigint, unit: bigint): bigint {
  return ((value + unit - 1n) / unit) * unit;
}

customElements.define('ox-map', ClusterMap);
