// <ox-snapshots>: the image's snapshots, and which state of the disk is looked at.

import type { Size, Snapshot } from 'oxcow';
import { css, html, LitElement, type TemplateResult } from 'lit';

import { base } from '../styles.js';
import { date, duration, exact, size } from '../words.js';

export class Snapshots extends LitElement {
  static override properties = { snapshots: { attribute: false }, used: { attribute: false }, activeSize: { attribute: false } };
  declare snapshots: Snapshot[];
  /** The id of the snapshot that is looked at. */
  declare used: string | undefined;
  /** The size of the disk in its active state. */
  declare activeSize: Size;

  static override styles = [
    base,
    css`
      label {
        display: flex;
        align-items: center;
        gap: 0.5rem;
        min-height: 1.75rem;
        cursor: pointer;
        font-weight: 600;
      }
      table {
        min-width: 38rem;
        margin-top: 0.25rem;
      }
      td {
        vertical-align: middle;
      }
      .end {
        padding-inline-end: 1.75rem;
      }
      tr.used td {
        background: var(--accent-soft);
      }
      td:first-child {
        padding-inline-start: 0.375rem;
      }
    `,
  ];

  override render(): TemplateResult {
    return html`<p class="small muted">Each snapshot is the whole disk as it was. Choose which state the map, the bytes and the download show.</p>
      <div class="scroll" tabindex="0" role="region" aria-label="Table of snapshots">
        <table>
          <caption class="hide">States of the disk</caption>
          <thead>
            <tr>
              <th scope="col">State</th>
              <th scope="col">Taken</th>
              <th scope="col" class="end">Disk size</th>
              <th scope="col" class="end">Memory saved</th>
              <th scope="col">Machine ran for</th>
            </tr>
          </thead>
          <tbody class="number">
            <tr class=${this.used === undefined ? 'used' : ''}>
              <td>
                <label><input type="radio" name="state" .checked=${this.used === undefined} @change=${() => this.#use(undefined)} />Active state</label>
              </td>
              <td>now</td>
              <td class="end" title=${exact(this.activeSize)}>${size(this.activeSize)}</td>
              <td class="end">–</td>
              <td>–</td>
            </tr>
            ${this.snapshots.map((snapshot) => this.#row(snapshot))}
          </tbody>
        </table>
      </div>`;
  }

  #row(snapshot: Snapshot): TemplateResult {
    const used = this.used === snapshot.id;
    const disk = snapshot.diskSize ?? this.activeSize;
    return html`<tr class=${used ? 'used' : ''}>
      <td>
        <label
          ><input type="radio" name="state" .checked=${used} @change=${() => this.#use(snapshot.id)} /><span class="name">${snapshot.name || '(no name)'}</span
          ><span class="muted small">${snapshot.id}</span></label
        >
      </td>
      <td>${date(snapshot.dateSec)}</td>
      <td class="end" title=${exact(disk)}>${size(disk)}</td>
      <td class="end">${snapshot.vmStateSize == 0 ? 'none' : size(snapshot.vmStateSize)}</td>
      <td>${snapshot.vmClockSec === 0 && snapshot.vmClockNsec === 0 ? '–' : duration(snapshot.vmClockSec, snapshot.vmClockNsec)}</td>
    </tr>`;
  }

  #use(id: string | undefined): void {
    this.dispatchEvent(new CustomEvent('use-snapshot', { detail: id, bubbles: true, composed: true }));
  }
}

customElements.define('ox-snapshots', Snapshots);
