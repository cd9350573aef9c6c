import { Table, Text } from '@mantine/core'
import { show } from '../format'

/** Parameters: name and value. The compiler's prefix of values that come from other tasks is left out. */
export function Values({ values, empty }: { values: Record<string, unknown>; empty: string }) {
  const rows = Object.entries(values)
  if (rows.length === 0) return <Text size="sm" c="dimmed">{empty}</Text>
  return (
    <Table withRowBorders={false} verticalSpacing={3} horizontalSpacing={0} layout="fixed">
      <Table.Tbody>
        {rows.map(([name, value]) => (
          <Table.Tr key={name}>
            <Table.Td w="38%" pr="sm"><Text size="sm" c="dimmed" style={{ overflowWrap: 'anywhere' }}>{name.replace('pipelinechannel--', '')}</Text></Table.Td>
            <Table.Td><Text size="sm" className="mono wrap" lineClamp={12}>{show(value)}</Text></Table.Td>
          </Table.Tr>
        ))}
      </Table.Tbody>
    </Table>
  )
}
