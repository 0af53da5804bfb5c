// <ox-hex>: the disk's bytes at any offset, a sector at a time.

import type { DiskImage, OxcowError } from 'oxcow';
import { css, html, LitElement, nothing, type PropertyValues, type TemplateResult } from 'lit';

import { icons } from '../icons.js';
import { asError } from '../trouble.js';
import { base } from '../styles.js';
import { count, hex, parseOffset } from '../words.js';

const SECTOR = 512n;
const ROW = 16;

export class HexView extends LitElement {
  static override properties = {
    image: { attribute: false },
    view: { attribute: false },
    _offset: { state: true },
    _shown: { state: true },
    _error: { state: true },
    _wrong: { state: true },
  };
  declare image: DiskImage | undefined;
  declare view: number;
  declare _offset: bigint;
  /** Bytes and where they stand: while others are being read, these keep their own offsets. */
  declare _shown: { at: bigint; bytes: Uint8Array } | undefined;
  declare _error: OxcowError | undefined;
  declare _wrong: string;

  static override styles = [
    base,
    css`
      .fields {
        margin-bottom: 0.75rem;
      }
      input {
        width: 12rem;
        font-family: var(--mono);
      }
      .bytes {
        background: var(--sunken);
        border: 1px solid var(--line);
        border-radius: 8px;
        padding: 0.5rem 0.75rem;
      }
      table {
        width: auto;
        font: 0.8125rem/1.5 var(--mono);
        font-variant-ligatures: none;
      }
      th,
      td {
        border: 0;
        padding: 0 1.125rem 0 0;
        font: inherit;
        white-space: pre;
      }
      th[scope='row'] {
        color: var(--muted);
      }
      thead th {
        color: var(--muted);
      }
      td:last-child,
      thead th:last-child {
        padding: 0;
      }
      .nothing {
        color: var(--muted);
      }
      .wrong {
        margin: -0.375rem 0 0.75rem;
      }
      p.where {
        margin-top: 0.5rem;
      }
    `,
  ];

  constructor() {
    super();
    this.view = 0;
    this._offset = 0n;
    this._wrong = '';
  }

  override willUpdate(changed: PropertyValues<this>): void {
    // The bytes of another state are not those of this one.
    if (changed.has('view')) this._shown = undefined;
    if (changed.has('view') && this.image) void this.#go(this._offset < this.#size ? this._offset : 0n);
  }

  get #size(): bigint {
    return BigInt(this.image?.virtualSize ?? 0);
  }

  /** Shows the sector that holds byte `offset`. */
  async show(offset: bigint): Promise<void> {
    await this.#go(offset);
    this.scrollIntoView({ block: 'nearest' });
    this.renderRoot.querySelector<HTMLElement>('.bytes')?.focus({ preventScroll: true });
  }

  override render(): TemplateResult {
    const offset = this._offset;
    const last = this.#size > 0n ? ((this.#size - 1n) / SECTOR) * SECTOR : 0n;
    return html`
      <form class="fields" @submit=${this.#submit} novalidate>
        <label
          >Offset on the disk
          <input type="text" name="offset" .value=${hex(offset)} spellcheck="false" autocomplete="off" aria-describedby="forms ${this._wrong ? 'wrong' : ''}" aria-invalid=${this._wrong ? 'true' : 'false'} />
        </label>
        <button type="submit">Go</button>
        <div class="row">
          ${this.#step('First sector', icons.first, 0n, offset === 0n)} ${this.#step('Previous sector', icons.previous, offset - SECTOR, offset === 0n)}
          ${this.#step('Next sector', icons.next, offset + SECTOR, offset >= last)} ${this.#step('Last sector', icons.last, last, offset >= last)}
        </div>
      </form>
      <p class="wrong" id="wrong" role="alert">${this._wrong}</p>
      ${this._error
        ? html`<p class="wrong" role="alert">These bytes could not be read: ${this._error.message}</p>`
        : html`<div class="bytes scroll" tabindex="0" role="region" aria-label="Bytes of the disk" @keydown=${this.#key}>${this.#table()}</div>`}
      <p class="where small muted number" id="forms">
        Sector ${count(offset / SECTOR)} of ${count(this.#size === 0n ? 0n : last / SECTOR + 1n)}, 512 bytes each. Offsets may be written as
        <code>0x7e00</code>, <code>32256</code>, <code>63s</code> (sectors) or <code>1 MiB</code>.
      </p>
    `;
  }

  #step(name: string, icon: TemplateResult, to: bigint, disabled: boolean): TemplateResult {
    return html`<button type="button" class="icon" aria-label=${name} title=${name} ?disabled=${disabled} @click=${() => this.#go(to)}>${icon}</button>`;
  }

  #table(): TemplateResult | typeof nothing {
    if (!this._shown) return nothing;
    const { at: start, bytes } = this._shown;
    const rows = [];
    for (let at = 0; at < bytes.length; at += ROW) rows.push(bytes.subarray(at, at + ROW));
    return html`<table>
      <caption class="hide">512 bytes from ${hex(start)} on, 16 in a row</caption>
      <thead>
        <tr>
          <th scope="col">Offset</th>
          <th scope="col">Bytes</th>
          <th scope="col">Text</th>
        </tr>
      </thead>
      <tbody>
        ${rows.map(
          (row, index) => html`<tr>
            <th scope="row">${(start + BigInt(index * ROW)).toString(16).padStart(8, '0')}</th>
            <td class=${row.every((byte) => byte === 0) ? 'nothing hex' : 'hex'}>${hexOf(row)}</td>
            <td class=${row.every((byte) => byte === 0) ? 'nothing' : ''}>${textOf(row)}</td>
          </tr>`,
        )}
      </tbody>
    </table>`;
  }

  #submit(event: SubmitEvent): void {
    event.preventDefault();
    const input = this.renderRoot.querySelector('input');
    const offset = parseOffset(input?.value ?? '');
    if (offset === undefined) this._wrong = 'That is no offset.';
    else if (offset >= this.#size) this._wrong = `The disk ends at ${hex(this.#size)}.`;
    else void this.#go(offset);
  }

  #key(event: KeyboardEvent): void {
    if (event.key !== 'PageDown' && event.key !== 'PageUp') return;
    const next = event.key === 'PageDown' ? this._offset + SECTOR : this._offset - SECTOR;
    if (next < 0n || next >= this.#size) return;
    event.preventDefault();
    void this.#go(next);
  }

  async #go(wanted: bigint): Promise<void> {
    const { image } = this;
    if (!image) return;
    const offset = (wanted / SECTOR) * SECTOR;
    const length = this.#size - offset < SECTOR ? this.#size - offset : SECTOR;
    this._wrong = '';
    this._offset = offset;
    try {
      const bytes = length > 0n ? await image.read(offset, Number(length)) : new Uint8Array();
      if (this._offset !== offset || this.image !== image) return;
      this._shown = { at: offset, bytes };
      this._error = undefined;
      this.dispatchEvent(new CustomEvent('activity', { bubbles: true, composed: true }));
    } catch (error) {
      if (this._offset === offset && this.image === image) this._error = asError(error);
    }
  }
}

function hexOf(row: Uint8Array): string {
  const groups = [];
  for (let at = 0; at < ROW; at += 8) {
    groups.push(Array.from(row.subarray(at, at + 8), (byte) => byte.toString(16).padStart(2, '0')).join(' '));
  }
  return groups.join('  ').trimEnd();
}

function textOf(row: Uint8Array): string {
  return Array.from(row, (byte) => (byte >= 0x20 && byte < 0x7f ? String.fromCharCode(byte) : '·')).join('');
}

customElements.define('ox-hex', HexView);
